"""What tables and figures call the columns of records."""

from agsfl.records.columns import OF_TASKS
from agsfl.records.fairness import SPREAD

MEAN, DEVIATION, WORST, BEST, JAIN = SPREAD

TITLES = {
    "round": "rounds",
    "time": "normalised time",
    "seconds": "simulated seconds",
    "bytes": "bytes sent",
    "train_loss": "training loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    MEAN: "test accuracy, mean over clients",
    DEVIATION: "test accuracy, deviation over clients",
    WORST: "test accuracy, worst 10% of clients",
    BEST: "test accuracy, best 10% of clients",
    JAIN: "test accuracy, Jain's index",
    **OF_TASKS,
}


def title_of(column: str) -> str:
  """The title of a column; the user's own metrics are called by their names.

  >>> title_of("train_loss"), title_of("my_norm")
  ('training loss', 'my_norm')
  """
  return TITLES.get(column, column)
