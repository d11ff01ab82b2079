"""Where tables are placed: what steps ask of them, the plan of a job, and what it was measured to cost."""
