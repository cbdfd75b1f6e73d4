"""Where things lie, what each rule of the workflow reads, and what a grid will cost."""
