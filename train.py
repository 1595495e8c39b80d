"""Stage 2: train routers on the frozen base and write a checkpoint that loads with trust_remote_code.

    python train.py --model_id M --data data/mcts_paths --run_name my-run --num_epochs 25 --learning_rate 1e-3

Or train a router end to end on text, with adapters or on the frozen base; a YAML file can hold the arguments:

    python train.py --objective gumbel --router prefix_token --run_name my-run
    python train.py experiments/gumbel.yaml --run_name my-run --seed 1

Or train adapters that stand in for skipped layers; other commands take them with --adapters checkpoints/my-adapters:

    python train.py --objective adapters --dataset arithmetic --run_name my-adapters

Or train a router that reads the query and prunes layers, on layer sets that data_generation.py explored:

    python train.py --objective orpo --router query --data data/explored --run_name my-run

Or train a router that estimates what each path of a menu is worth, on a dense table of --search menu:

    python train.py --objective value --data data/menu --adapters checkpoints/my-adapters --run_name my-run

Or train a small language model from scratch whose blocks choose linear or softmax attention for each token:

    python train.py --objective lm --config dynamic --run_name my-run

A run that was interrupted continues with the same arguments and --resume. Several GPUs, or processes on a machine
without any (--multi_gpu is what makes accelerate start them there too):

    accelerate launch --multi_gpu --num_processes 2 train.py --batch_size 8 …
"""

from routing.commands.train import main
from routing.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
