"""The engines' end of the weight sync (runs in vLLM's workers and in the engine's actor).

``worker.py`` is mixed into vLLM's workers and takes buckets whichever way they come; ``loading.py`` passes them to the
model; ``driving.py`` calls the workers from the actor. These files import vLLM; this one does not.
"""

WORKER_EXTENSION = f"{__name__}.worker.WeightsWorker"
"""vLLM's ``worker_extension_cls``: workers import it themselves, including those in processes of their own."""
