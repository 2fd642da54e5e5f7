#!/usr/bin/env bash
# A training on the nodes of a Slurm job: a Ray cluster of the job's own, a check, then the run, which goes on when it is requeued.
#
#   sbatch scripts/deploy/slurm.sh --config my_run.yaml --run.dir /shared/runs --ckpt.save_steps 20
#
# Submit it from the checkout, on a disk that every node sees. BIN names the environment's commands (default .venv/bin).
#SBATCH --job-name=dapo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

BIN=${BIN:-.venv/bin}
PORT=${PORT:-6379}
WAIT_SECONDS=${WAIT_SECONDS:-300}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}

# Only who has the token may use the cluster; srun passes the environment on.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_ADDRESS="$head:$PORT"

started=()
run=""
trap 'kill "${started[@]}" 2>/dev/null || true; wait || true' EXIT
# The run alone is told: it saves a checkpoint, and Ray must live until it has.
trap '[ -z "$run" ] || kill -TERM "$run"' TERM
trap '[ -z "$run" ] || kill -USR1 "$run"' USR1

on() { # NODE COMMAND...: become a command on one node, beside what else runs there; for the background
    local node=$1
    shift
    exec env -u RAY_ADDRESS srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$@"
}

on "$head" "$BIN/ray" start --head --block --port="$PORT" --disable-usage-stats &
started+=($!)
for node in "${nodes[@]:1}"; do
    on "$node" "$BIN/ray" start --block --address="$head:$PORT" --disable-usage-stats &
    started+=($!)
done

"$BIN/python" - "${#nodes[@]}" "$WAIT_SECONDS" <<'PYTHON'
import os, sys, time
import ray

wanted, deadline, there = int(sys.argv[1]), time.monotonic() + float(sys.argv[2]), 0
while there < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{there} of {wanted} nodes have joined {os.environ['RAY_ADDRESS']}; look at the errors of srun above")
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
        there = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
    except (ConnectionError, RuntimeError, TimeoutError, ValueError):
        pass
    time.sleep(2)
PYTHON

"$BIN/dapo-openrlhf" check "$@"
"$BIN/dapo-openrlhf" train "$@" --resume auto &
run=$!
status=0
while :; do # a signal ends `wait` before the run has ended
    wait "$run" && status=0 || status=$?
    kill -0 "$run" 2>/dev/null || break
done
# 143: stopped with a checkpoint because the time was up; it goes on in the next one.
if [ "$status" -eq 143 ] && [ -n "${SLURM_JOB_ID:-}" ]; then scontrol requeue "$SLURM_JOB_ID" || true; fi
exit "$status"
