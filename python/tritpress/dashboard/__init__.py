"""The live page: reads the event logs of runs, starts and steers them, and never takes part in them.

Rooms: `store` (one reader thread that tails logs), `views` (state to plain data, no panel), `components`
(charts and HTML), `tabs` (one file each), `sidebar`, `session` (one browser page), `app` (the server).
Nothing here imports torch.
"""
