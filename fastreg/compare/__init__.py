"""Training a recommender with Keras's regularizers and with fastreg's, side by side."""
