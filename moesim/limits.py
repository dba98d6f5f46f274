"""Sizes that no request exceeds: beyond them it is refused before anything of that size is made."""

#: experts of a layer: tables of them are held for every layer and device. Four times the largest
#: studied in print, 2^20 (https://arxiv.org/abs/2407.04153)
MOST_EXPERTS = 1 << 22
#: layers of a model, each an object of its own
MOST_LAYERS = 1 << 14
#: processes of one machine that evaluate the trials of a study
MOST_WORKERS = 1024
#: days that are drawn anew, each with all of its events in memory
MOST_SEEDS = 1000
