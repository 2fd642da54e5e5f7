"""The weight sync: one protocol by which weights travel from the trainer's ranks to the engines (the rollout workers).

*Stage* a version in buckets of bounded size (:mod:`buckets`), *move* them, *load* them (``receivers/``), *acknowledge* with
the :mod:`checksum` of what was loaded. Buckets move as objects of Ray's object store, or are broadcast within a
:mod:`group`, whose members meet in a :mod:`store` of the controller's and differ in their :mod:`communicators` only.

``backend/run/publishers/`` conduct a weight sync, and ``config/transports.py`` defines which transport a run may use.
"""
