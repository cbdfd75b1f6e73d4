"""Tables, claims and figures of the paper, as pure functions of metrics.csv and of the folder `paper/`.

Nothing here imports torch or touches a model: a laptop rebuilds everything from an archived metrics.csv.
"""
