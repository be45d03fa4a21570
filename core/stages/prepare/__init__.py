"""Sources → examples → quality → tokens."""
