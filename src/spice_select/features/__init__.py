"""What methods need to see of the rows, measured with the proxy: losses, embeddings, token features, ratings."""
