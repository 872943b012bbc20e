"""What `compare.py` is made of, a file for each job. Data flow from top to bottom:

`options` reads the command line, `arms` reads `--arm`, `own_scores` loads functions and arrays that rank. `samples`
makes the pool and the held-out samples, `corruption` spoils the pool, and `setting` loads the model, which learns the
known part of the pool first if that is asked for. `sharing` says which arms can select from the same round, `scoring`
scores the pool for all arms, `schedule` says which samples each step trains, `plan` lists the runs, `dealing` gives
each to a process, `training` makes one and `results` stores it. `statistics` are pure functions, `judgement` compares
the arms with them, `wording` says it in sentences, and `tables`, `page` and `plot` show it.
"""
