"""Cut parts of a model and see how its predictions change: in a notebook, in a browser, or recorded in a page.

`session` has the state of an exploration and knows nothing of the web; `models` runs the models and `reading` turns the
runs into plain numbers; `page` builds the page, with the same script for all three places; `server` and `widget` pass
the user's clicks to the session. Unlike other figures this one takes models, and runs them while the page is used.
"""
