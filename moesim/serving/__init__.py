"""Start a design in a serving engine: the launch command, and the files that go with it. The request
loop of such an engine is in `moesim.serving.loop`.
"""
