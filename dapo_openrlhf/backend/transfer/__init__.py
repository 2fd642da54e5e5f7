"""The weight sync: how weights travel from the trainer's ranks to the engines (the rollout workers).

``senders/`` run in trainer ranks, ``receivers/`` in vLLM's workers, with a file per transport in each; what arrives is
compared with what was sent by :mod:`checksum`. Who is told when is in ``backend/run/publishers/``, and which transport a run
may take in ``config/transports.py``.
"""
