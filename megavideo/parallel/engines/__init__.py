"""DeepSpeed's engines, with and without a pipeline, and what is in them."""
