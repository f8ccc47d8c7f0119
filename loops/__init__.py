"""Selection inside other people's training loops. Each module needs the library that it is for.

Nothing is imported here: `attent.loops.transformers` is for transformers' and TRL's trainers,
`attent.loops.lightning` for Lightning's.
"""
