"""Many trainings through DVC's queue: what is missing runs, whatever happened before."""
