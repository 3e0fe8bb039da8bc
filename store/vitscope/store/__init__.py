"""The on-disk format of vitscope: manifest, Zarr arrays and FAISS indexes."""
