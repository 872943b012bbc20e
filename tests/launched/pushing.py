"""A training that pushes to a hub: pushing.py OUTPUT STRATEGY [SCORES_DIR]."""

import sys

from transformers import DataCollatorForSeq2Seq, Trainer

from miwv_trainer import MIWVConfig, attach, tokenize
from tests.helpers.tiny import tiny_dataset, tiny_model, tiny_tokenizer
from tests.helpers.trainers import arguments


def main() -> None:
    output, strategy, *scores_dir = sys.argv[1:]
    tokenizer = tiny_tokenizer()
    pushed = {"push_to_hub": True, "hub_model_id": "somebody/tuned", "hub_strategy": strategy, "hub_always_push": True}
    trainer = Trainer(
        tiny_model(),
        arguments(output, num_train_epochs=2, save_strategy="epoch", **pushed),
        train_dataset=tokenize(tiny_dataset(16), tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    config = MIWVConfig(fraction=0.25, rescore_strategy="epoch", embedder="tfidf", scores_dir=(scores_dir or [None])[0])
    attach(trainer, config)
    trainer.train()
    trainer.push_to_hub()


if __name__ == "__main__":
    main()
