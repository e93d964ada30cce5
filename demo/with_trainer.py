"""A tuned ViT in transformers' Trainer, on scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import fxtune

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
samples = [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, digits.target, strict=True)]

sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 48, "intermediate_size": 96}
config = ViTConfig(**sizes, num_hidden_layers=4, num_attention_heads=4, num_labels=10, initializer_range=0.1)
model = ViTForImageClassification(config)  # or .from_pretrained(...): these weights have learned nothing yet
tuned = fxtune.apply(model, "tri_res", dim=16)

trainer = Trainer(
    tuned,
    TrainingArguments(
        "out/trainer",
        num_train_epochs=10,
        per_device_train_batch_size=32,
        learning_rate=0.003,
        eval_strategy="epoch",
        save_strategy="epoch",  # checkpoints that `trainer.train(resume_from_checkpoint=True)` goes on from
        report_to="none",
    ),
    train_dataset=samples[:1200],
    eval_dataset=samples[1200:],
    compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()},
)
trainer.train()
accuracy = trainer.evaluate()["eval_accuracy"]
print(f"accuracy {accuracy:.1%}")
tuned.save("out/trainer/tuned")  # the tuners and the head: fxtune.load(model, "out/trainer/tuned")
