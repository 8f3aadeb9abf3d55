import pytest
import timm
import torch

from openmed.errors import BadInput
from openmed.models.factory import ModelFactory, build_empty


def test_the_three_architectures_are_known():
    assert ModelFactory.names() == ("resnet50", "vit", "inceptionv3")


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match=r"'vgg16'.*resnet50, vit, inceptionv3"):
        ModelFactory.create("vgg16")


@pytest.mark.parametrize("architecture", ModelFactory.names())
@pytest.mark.parametrize("classes", [("NORMAL", "PNEUMONIA"), ("NORMAL", "BACTERIA", "VIRUS")])
def test_each_architecture_gives_a_logit_for_each_class(make, architecture, classes):
    model = make(architecture, class_names=classes, positive=classes[-1]).eval()
    size = model.spec.image_size_px
    with torch.inference_mode():
        x = model.prepare(torch.zeros(2, size, size, dtype=torch.uint8))
        features = model.features(x)
        logits = model(x)
        torch.testing.assert_close(model.head(features), logits)
        torch.testing.assert_close(model.network(x), logits)
    assert logits.shape == (2, len(classes))
    assert features.ndim == (3 if architecture == "vit" else 4)


@pytest.mark.parametrize("architecture", ModelFactory.names())
def test_the_blocks_hold_the_whole_backbone_once_and_in_order(make, architecture):
    model = make(architecture)
    head = {id(p) for p in model.classifier().parameters()}
    in_blocks = [id(p) for block in model.blocks() for p in block.parameters()]
    assert len(in_blocks) == len(set(in_blocks))
    missing = [n for n, p in model.network.named_parameters() if id(p) not in head | set(in_blocks)]
    # Tokens and position embedding belong to no block of a transformer.
    assert missing == (["cls_token", "pos_embed"] if architecture == "vit" else [])


@pytest.mark.parametrize(
    ("architecture", "size", "mean"),
    [("resnet50", 224, 0.485), ("vit", 224, 0.485), ("inceptionv3", 299, 0.5)],
)
def test_the_published_preprocessing_is_that_of_timm(architecture, size, mean):
    with torch.device("meta"):
        model = ModelFactory.create(architecture)
    spec = model.spec
    published = timm.get_pretrained_cfg(spec.timm_name)
    assert spec.image_size_px == size
    assert spec.mean[0] == mean
    assert (spec.mean, spec.std) == (published.mean, published.std)
    assert published.input_size[-1] == size


@pytest.mark.parametrize(
    ("architecture", "timm_name", "size", "layer"),
    [
        ("resnet50", None, 224, "layer4"),
        ("resnet50", "test_resnet", 224, "layer4"),
        ("resnet50", None, 96, "layer3"),
        ("resnet50", None, 64, "layer2"),
        ("inceptionv3", None, 299, "Mixed_7c"),
        ("inceptionv3", None, 96, "Mixed_6e"),
        ("vit", None, 224, "blocks"),
    ],
)
def test_small_films_are_explained_at_an_inner_layer(architecture, timm_name, size, layer):
    with torch.device("meta"):
        model = ModelFactory.create(architecture, timm_name=timm_name, image_size_px=size)
    assert model.spec.explanation_layer == layer
    assert model.network.get_submodule(layer) is not None


def test_a_vit_knows_its_grid_and_its_extra_tokens():
    model = ModelFactory.create(
        "vit", timm_name="test_vit", image_size_px=48, model_options={"reg_tokens": 2, "patch_size": 8}
    )
    assert model.grid == (6, 6)
    assert model.prefix_tokens == 3
    assert model.spec.model_options == {"reg_tokens": 2, "patch_size": 8}


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(make):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (make("resnet50", seed=seed).network.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


@pytest.mark.parametrize("name", ["no_such_net", "resnet50.no_such_weights"])
@pytest.mark.parametrize("weights", ["none", "imagenet"])
def test_an_unknown_network_is_refused(name, weights):
    with pytest.raises(BadInput, match=name):
        ModelFactory.create("resnet50", timm_name=name, weights=weights)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_a_network_of_another_family_is_refused(name):
    with pytest.raises(BadInput, match=f"'{name}' is a .*, not a ResNet"):
        ModelFactory.create("resnet50", timm_name=name)


def test_an_unknown_model_option_is_refused(make):
    with pytest.raises(BadInput, match="depht"):
        make("resnet50", model_options={"depht": 3})


@pytest.mark.parametrize("option", ["pretrained", "checkpoint_path", "pretrained_cfg_overlay", "num_classes"])
def test_an_option_that_would_load_weights_or_change_the_head_is_refused(make, option):
    with pytest.raises(BadInput, match=option):
        make("resnet50", model_options={option: True})


@pytest.mark.parametrize("name", ["hf-hub:someone/net", "local-dir:/somewhere", "timm/test_resnet"])
def test_a_network_name_that_is_an_address_is_refused(make, name):
    with pytest.raises(BadInput, match="address"):
        make("resnet50", timm_name=name)


@pytest.mark.parametrize("classes", [(), ("PNEUMONIA",), ("PNEUMONIA", "PNEUMONIA")])
def test_fewer_than_two_classes_are_refused(make, classes):
    with pytest.raises(BadInput, match="two or more different classes"):
        make("resnet50", class_names=classes)


def test_a_positive_class_that_is_no_class_is_refused(make):
    with pytest.raises(BadInput, match="'COVID'"):
        make("resnet50", positive="COVID")


def test_an_empty_model_has_the_shapes_of_its_spec(make):
    model = make("vit", model_options={"patch_size": 8})
    empty = build_empty(model.spec)
    assert type(empty) is type(model)
    shapes = {name: tensor.shape for name, tensor in model.network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in empty.network.state_dict().items()} == shapes
