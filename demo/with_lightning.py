"""A tuned ViT in Lightning, on scikit-learn's digits."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTConfig, ViTForImageClassification

import fxtune


class Classifier(lightning.LightningModule):
    def __init__(self, tuned: fxtune.TunedModel) -> None:
        super().__init__()
        self.tuned = tuned

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return cross_entropy(self.tuned(batch[0]).logits, batch[1])

    def test_step(self, batch: list[torch.Tensor]) -> None:
        self.log("accuracy", (self.tuned(batch[0]).logits.argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.tuned.parameter_groups(lr=0.003, weight_decay=0.01))


digits = load_digits()
images, labels = torch.tensor(digits.images).float().unsqueeze(1) / 8 - 1, torch.tensor(digits.target)
train, test = (TensorDataset(images[part], labels[part]) for part in (slice(1200), slice(1200, None)))

sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 48, "intermediate_size": 96}
config = ViTConfig(**sizes, num_hidden_layers=4, num_attention_heads=4, num_labels=10, initializer_range=0.1)
model = ViTForImageClassification(config)  # or .from_pretrained(...): these weights have learned nothing yet
classifier = Classifier(fxtune.apply(model, "tri_res", dim=16))
trainer = lightning.Trainer(max_epochs=10, default_root_dir="out", logger=False)
trainer.fit(classifier, DataLoader(train, batch_size=32, shuffle=True))
accuracy = trainer.test(classifier, DataLoader(test, batch_size=100))[0]["accuracy"]
classifier.tuned.save("out/lightning")  # the tuners and the head: fxtune.load(model, "out/lightning")
