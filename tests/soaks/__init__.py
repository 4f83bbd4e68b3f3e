"""Long runs against real processes: ``python -m tests.soaks kills|churn|steady|detached|queues --help``."""
