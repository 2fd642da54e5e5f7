"""Publishers, which conduct a weight sync from the controller.

| publisher      | transports       | ``send`` returns when           | engines pause for             |
|----------------|------------------|---------------------------------|-------------------------------|
| ``object_store`` | object_store   | rank 0 has put all buckets away | loading                       |
| ``broadcast``    | nccl, gloo, ipc | every engine has the weights   | gathering, transfer, loading  |

Whichever way they travel, weights come in the same buckets, are loaded by the same code, and are acknowledged with the
checksum of what was loaded; a version counts as live when every engine in service has acknowledged it with the trainer's
checksum. The number of calls depends on the number of buckets and engines, not on that of parameters.

An engine that dies, is late or fails to load is ended, so that the pool replaces it; the version goes live without it. The
new engine loads a copy from the object store before it is in service, whatever the transport (:mod:`service`). Members of a
broadcast whose other members are dead or hang are told to leave through a store in this process (:mod:`groups`); a group of
those left is formed, and the version is sent again. Weights that do not fit the model, and a trainer rank that fails, end
the publication with an error.

``backend/transfer/`` defines how the bytes travel, and ``config/transports.py`` which transport a run may use.
"""
