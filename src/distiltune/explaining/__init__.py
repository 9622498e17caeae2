"""Which words moved a verdict."""
