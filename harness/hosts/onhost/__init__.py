"""Scripts that run on the host: modules of the standard library alone, sent as source.

They follow `harness.remote.onhost`: one `main(parameters, source, report)`, reports in JSON.
"""
