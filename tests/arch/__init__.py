"""What a model is, held against Transformers itself."""
