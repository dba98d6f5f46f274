"""Start a design in a serving engine: the launch command, and the files that go with it.

`moesim.serving.loop` simulates how such an engine serves requests.
"""
