"""Training: the project's own loop, the Hugging Face Trainer beside it, and their records.

Nothing is imported here, so that who reads the records does not depend on the engines.
"""
