#!/bin/bash
# One training on all GPUs of several nodes. From the project's root, on a file system
# that the nodes share, with the arguments of `dvc exp run`:
#     GPUS_PER_NODE=8 sbatch --nodes=2 --gpus-per-node=8 docs/recipes/slurm.sh -S optimizer=adamw
#SBATCH --job-name=distiltune
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=02:00:00
# Two minutes before the time is up, so that the state is saved; the same job goes on from it.
#SBATCH --signal=TERM@120
set -euo pipefail
. .venv/bin/activate
port=$((20000 + SLURM_JOB_ID % 10000))
export DISTILTUNE_LAUNCHER="srun torchrun --nnodes $SLURM_JOB_NUM_NODES \
  --nproc-per-node $GPUS_PER_NODE --rdzv-id $SLURM_JOB_ID --rdzv-backend c10d \
  --rdzv-endpoint $(hostname):$port"
exec dvc exp run -S train.processes=$((SLURM_JOB_NUM_NODES * GPUS_PER_NODE)) "$@"
