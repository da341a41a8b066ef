"""Cut a model and watch its answer move: in a notebook, in a browser, and recorded in a page.

`session` holds what is explored and knows no web; `models` runs it, `reading` makes plain numbers of the runs; `page`
draws them with one script for all three places; `server` and `widget` carry what is clicked to the session. Unlike
other figures this one takes models, which it asks while it is looked at.
"""
