"""What the paper says and reports: its numbers, its consistency, and its statements decided on ours."""
