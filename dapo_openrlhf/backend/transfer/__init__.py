"""The weight sync: how weights travel from the trainer's ranks to the engines (the rollout workers).

``senders/`` run in trainer ranks and ``receivers/`` in vLLM's workers, with one file per transport in each.
:mod:`checksum` compares what arrived with what was sent; :mod:`gloo` is a communicator for both ends on a CPU.
``backend/run/publishers/`` conduct a weight sync, and ``config/transports.py`` defines which transport a run may use.
"""
