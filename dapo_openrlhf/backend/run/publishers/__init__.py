"""Publishers: who is told when in a weight sync, a file per transport (runs in the controller).

| publisher    | ``send`` returns when            | engines pause for             | an engine that is lost |
|--------------|----------------------------------|-------------------------------|------------------------|
| nccl         | every engine has the weights     | gathering, broadcast, loading | ends the run           |
| ipc          | each rank has copied them aside  | loading                       | ends the run           |
| object_store | rank 0 has packed them           | loading                       | is replaced            |

Between GPUs both sides take part in the same broadcast, so there is nothing to overlap it with but a copy of the whole
model, and the trainer waits for less than an engine's step. On a shared GPU engines read such a copy, because the trainer
would otherwise wait for their running steps. Either way engines keep their requests, and the number of calls depends
neither on parameters nor on their size. A version counts as live when every engine has acknowledged it with the trainer's
checksum. Calls have deadlines; what is late is asked what it is doing.

How the bytes travel is in ``backend/transfer/``; which transport a run may take in ``config/transports.py``.
"""
