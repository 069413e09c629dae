"""Real tools under budgets, and a job that uses them all: ``python -m examples.tools``."""
