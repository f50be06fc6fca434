#!/bin/sh
# What the words after the image's name mean.
set -eu

# the value of a word KEY=VALUE of the container's first process
first_process() {
    tr '\0' '\n' < /proc/1/cmdline | sed -n "s/^-*$1=//p" | tail -n 1
}

case "${1:-}" in
    "" | help | -h | --help)
        cat <<HELP
usage: docker run [options] IMAGE COMMAND ...

  predict ...      trainer predict: answers for studies; watch=IN answers them as they arrive
  train ...        trainer run: one stage on one fold
  preprocess ...   preprocess build-cache, verify, inspect, phantom ...
  healthy          whether the watch of this container is at work; for its health check
  accelerate ...   accelerate launch: one run on several GPUs
  plan, tables, pack, inspect, look ...   commands of trainer

\`IMAGE COMMAND --help\` says more. Mount what is read and written, and give the paths inside the container.
HELP
        ;;
    train)
        shift
        exec trainer run "$@"
        ;;
    healthy)
        if [ $# -gt 1 ]; then
            exec trainer "$@"
        elif [ -z "$(first_process watch)" ]; then
            echo "this container runs no watch"
        else
            exec trainer healthy "$(first_process out)"
        fi
        ;;
    preprocess | accelerate)
        exec "$@"
        ;;
    *)
        exec trainer "$@"
        ;;
esac
