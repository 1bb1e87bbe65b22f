"""The statistics of a table: differences between its rows, what they prove, and what more seeds would.

Pure functions on plain values: AP in percent by row and seed in, figures out. They know of no file, cluster or store.

| module | subject |
| --- | --- |
| ``variance`` | the row + seed model, and the deviation between trainings pooled over the table |
| ``looks`` | the share of the error level that each look at the table may spend |
| ``pairs`` | difference, interval and verdict of each pair that the table names |
| ``power`` | what a number of seeds can show, and how many a difference needs |
| ``ordering`` | agreement of the order of the rows with the paper's |
| ``images`` | intervals from resampled validation images |
"""
