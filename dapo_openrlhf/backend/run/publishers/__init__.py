"""Publishers, which conduct a weight sync from the controller: one file per transport.

| publisher    | ``send`` returns when            | engines pause for             | an engine that is lost |
|--------------|----------------------------------|-------------------------------|------------------------|
| nccl, gloo   | every engine has the weights     | gathering, broadcast, loading | ends the run           |
| ipc          | each rank has copied them aside  | loading                       | ends the run           |
| object_store | rank 0 has packed them           | loading                       | is replaced            |

Between GPUs both sides take part in the same broadcast, so training could continue meanwhile only with a copy of the
whole model, and the trainer waits for less than an engine's step. On a shared GPU the engines read such a copy, because
the trainer would otherwise wait for their running steps. In either case engines keep their requests, and the number of
calls depends neither on the number of parameters nor on their size. A version counts as live when every engine has
acknowledged it with the trainer's checksum. Calls have deadlines; an engine that is late is asked what it is doing.

``backend/transfer/`` defines how the bytes travel, and ``config/transports.py`` which transport a run may use.
"""
