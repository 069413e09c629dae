"""Programs that run as they are, from the directory above: ``python -m examples.tools``."""
