"""Search by image: embeddings in an index, nearest neighbours, duplicates, and how well features retrieve."""
