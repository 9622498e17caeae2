"""What the commands of `distiltune` do that need several parts of the package."""
