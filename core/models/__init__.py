"""What is known of a model: its folder, where it comes from, its adapters, merging them."""
