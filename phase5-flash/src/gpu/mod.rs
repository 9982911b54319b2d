//! The GPU: a few fat dispatches a layer, written once for Vulkan, Metal and DX12.
