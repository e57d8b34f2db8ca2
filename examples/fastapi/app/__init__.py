"""Facts: a small service that shows what a real one needs."""
