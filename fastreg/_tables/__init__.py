"""Lazily regularised tables: what `fastreg.Embedding` and `fastreg.LazyRegularization` are made of."""
