"""Models of segmentation, detection and vision repositories, small and with random weights, for coverage.py.

Needs segmentation_models_pytorch, transformers, monai (with einops) and ultralytics, in an environment with torchvision
and timm. Model names are those of the repository; settings only make a model small, never simpler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

Builder = Callable[[], nn.Module]

DECODERS = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet",
    "Segformer",
)  # fmt: skip
ENCODERS = (
    "mit_b0", "efficientnet-b0", "tu-convnext_atto", "densenet121", "se_resnet50", "dpn68", "timm-regnetx_002",
    "mobileone_s0", "vgg11_bn", "xception",
)  # fmt: skip
VIT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
STAGES = {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
TRANSFORMERS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "ViT": ("ForImageClassification", ("logits",), VIT),
    "DeiT": ("ForImageClassification", ("logits",), VIT),
    "Beit": (
        "ForSemanticSegmentation", ("logits",), {**VIT, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": False},
    ),
    "Dinov2": ("ForImageClassification", ("logits",), VIT),
    "DPT": (
        "ForDepthEstimation", ("predicted_depth",),
        {
            **VIT, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 24, 32, 32],
            "fusion_hidden_size": 32,
        },
    ),
    "GLPN": ("ForDepthEstimation", ("predicted_depth",), {"hidden_sizes": [16, 32, 40, 64], "decoder_hidden_size": 32}),
    "DepthAnything": ("ForDepthEstimation", ("predicted_depth",), {}),
    "Segformer": ("ForSemanticSegmentation", ("logits",), {**STAGES, "decoder_hidden_size": 32}),
    "MobileViT": (
        "ForSemanticSegmentation", ("logits",),
        {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 160], "aspp_out_channels": 32},
    ),
    "MobileViTV2": ("ForImageClassification", ("logits",), {"image_size": 64, "width_multiplier": 0.5}),
    "MobileNetV1": ("ForImageClassification", ("logits",), {"image_size": 64, "depth_multiplier": 0.25}),
    "MobileNetV2": ("ForSemanticSegmentation", ("logits",), {"image_size": 64, "depth_multiplier": 0.35}),
    "ResNet": ("ForImageClassification", ("logits",), {**STAGES, "embedding_size": 16}),
    "RegNet": ("ForImageClassification", ("logits",), {**STAGES, "embedding_size": 16, "groups_width": 8}),
    "ConvNextV2": ("ForImageClassification", ("logits",), STAGES),
    "Swin": ("ForImageClassification", ("logits",), WINDOWS),
    "Swinv2": ("ForImageClassification", ("logits",), WINDOWS),
    "Pvt": ("ForImageClassification", ("logits",), {**STAGES, "image_size": 64, "num_attention_heads": [1, 2, 4, 8]}),
    "PoolFormer": ("ForImageClassification", ("logits",), STAGES),
    "Levit": (
        "ForImageClassification", ("logits",),
        {
            "image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
    "EfficientNet": (
        "ForImageClassification", ("logits",),
        {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    ),
    "FocalNet": (
        "ForImageClassification", ("logits",),
        {
            "image_size": 64, "embed_dim": 24, "depths": [1, 1, 1], "hidden_sizes": [24, 48, 96],
            "focal_levels": [2, 2, 2], "focal_windows": [3, 3, 3],
        },
    ),
    "UperNet": ("ForSemanticSegmentation", ("logits",), {"hidden_size": 32, "use_auxiliary_head": False}),
    "Yolos": (
        "ForObjectDetection", ("logits", "pred_boxes"), {**VIT, "image_size": [64, 64], "num_detection_tokens": 10},
    ),
    "RTDetr": (
        "ForObjectDetection", ("logits", "pred_boxes"),
        {
            "encoder_hidden_dim": 32, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4,
            "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 10,
            "decoder_in_channels": [32, 32, 32], "anchor_image_size": [64, 64],
        },
    ),
}  # fmt: skip
"""Architecture → (what for, the outputs that are looked at, settings)."""
ULTRALYTICS = {
    "DetectionModel": ("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n"),
    "SegmentationModel": ("yolov8n-seg",),
    "PoseModel": ("yolov8n-pose",),
    "OBBModel": ("yolo11n-obb",),
    "ClassificationModel": ("yolov8n-cls",),
    "RTDETRDetectionModel": ("rtdetr-l",),
}  # fmt: skip


class Outputs(nn.Module):
    """Some outputs of a model of transformers."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.net(pixel_values=x, return_dict=True)
        return {name: found[name] for name in self.names}


def _smp(decoder: str, encoder: str, **options: Any) -> nn.Module:
    import segmentation_models_pytorch

    kind = getattr(segmentation_models_pytorch, decoder)
    return kind(encoder_name=encoder, encoder_weights=None, classes=5, **options)


def _transformers(name: str) -> nn.Module:
    import transformers

    what, outputs, settings = TRANSFORMERS[name]
    config = getattr(transformers, f"{name}Config")(**settings)
    return Outputs(getattr(transformers, f"{name}{what}")(config), outputs)


def _monai(name: str, *args: Any, **options: Any) -> nn.Module:
    import monai.networks.nets

    return getattr(monai.networks.nets, name)(*args, **options)


def _ultralytics(kind: str, name: str) -> nn.Module:
    from ultralytics.nn import tasks

    return getattr(tasks, kind)(f"{name}.yaml", verbose=False).float()


def repositories() -> dict[tuple[str, str], tuple[Builder, int]]:
    """(repository, model) → how it is built, and the size of its images."""
    found: dict[tuple[str, str], tuple[Builder, int]] = {}
    for encoder in ("resnet18", "mobilenet_v2"):
        for decoder in DECODERS:
            found["smp", f"{decoder}/{encoder}"] = partial(_smp, decoder, encoder), 128
    for encoder in ENCODERS:
        found["smp", f"Unet/{encoder}"] = partial(_smp, "Unet", encoder), 96
    found["smp", "Unet/two heads"] = partial(_smp, "Unet", "resnet18", aux_params={"classes": 4}), 96
    found["smp", "DPT/tu-vit_tiny_patch16_224"] = partial(_smp, "DPT", "tu-vit_tiny_patch16_224"), 224
    for name in TRANSFORMERS:
        found["transformers", name] = partial(_transformers, name), 56 if name == "DepthAnything" else 64
    nets: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "BasicUNet": ((2, 3, 4), {"features": (16, 16, 32, 32, 64, 16)}),
        "UNet": ((2, 3, 4, (16, 32, 64), (2, 2)), {"num_res_units": 2}),
        "AttentionUnet": ((2, 3, 4, (16, 32, 64), (2, 2)), {}),
        "SegResNet": ((2, 8, 3, 4), {}),
        "DynUNet": ((2, 3, 4, [3, 3, 3], [1, 2, 2], [2, 2]), {"filters": [16, 32, 64]}),
        "HighResNet": ((2, 3, 4), {}),
        "UNETR": (
            (3, 4, (64, 64)),
            {"feature_size": 16, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4, "spatial_dims": 2},
        ),
        "SwinUNETR": ((3, 4), {"feature_size": 12, "spatial_dims": 2}),
        "FlexibleUNet": ((3, 4, "efficientnet-b0"), {"spatial_dims": 2}),
    }
    for name, (args, options) in nets.items():
        found["monai", name] = partial(_monai, name, *args, **options), 64
    for kind, names in ULTRALYTICS.items():
        for name in names:
            found["ultralytics", name] = partial(_ultralytics, kind, name), 64
    return found
