"""Two tools with budgets: ``celery -A examples.quickstart.tasks worker -Q file_read``."""

from celery import Celery

from celery_budgets import BudgetedTask, Budgets

app = Celery("quickstart", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
budgets = Budgets(app)


@app.task(base=BudgetedTask, name="fs_read")  # by its name in the lane file_read
def fs_read(path: str) -> dict[str, int]:
    """Return size and number of lines of a file."""
    with open(path, "rb") as file:
        data = file.read()
    return {"bytes": len(data), "lines": data.count(b"\n")}


@app.task(base=BudgetedTask, lane="file_read", timeout=10)  # soft limit 10 s, hard limit 15 s
def longest_line(path: str) -> str:
    """Return the longest line of a text file."""
    with open(path, encoding="utf-8") as file:
        return max((line.strip() for line in file), key=len, default="")
