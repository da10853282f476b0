"""Scripts that run on the host: each a module of the standard library alone with one `main`.

They are sent as source (`harness.remote.hostpython`) and import nothing of ours. `main` takes the
parameters, standard input and standard output; it reports in JSON, a line each.
"""
