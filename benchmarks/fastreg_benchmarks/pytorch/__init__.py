"""PyTorch's and FBGEMM's sparse embeddings; neither is a dependency. Nothing here imports TensorFlow."""
