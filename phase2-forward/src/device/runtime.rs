//! Starts CubeCL's runtime on an adapter. Kernels are compiled to SPIR-V on hardware GPUs with Vulkan, and to WGSL elsewhere.
//!
//! CubeCL uses SPIR-V wherever Vulkan reports the features for it. Software rasterizers report them too, but crash on the SPIR-V of some of
//! Burn's kernels (lavapipe of Mesa 22.3 and 25.0). Their runtime is therefore built here, without the SPIR-V compiler.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cubecl::client::Client;
use cubecl::features::{AtomicUsage, TypeUsage};
use cubecl::ir::{
    AddressType, DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties, IntKind,
    MemoryDeviceProperties, Type, UIntKind,
};
use cubecl::profile::TimingMethod;
use cubecl::server::ServerUtilities;
use cubecl::wgpu::{
    AutoCompiler, AutoGraphicsApi, RuntimeOptions, WgpuDevice, WgpuDeviceKind, WgpuRuntime, WgpuServer, WgpuSetup,
    try_init_device, try_init_setup, wgpu,
};
use cubecl::{MemoryConfiguration, WgpuCompilationOptions};
use cubecl_common::device::{Device as _, DeviceId, ServiceId};
use cubecl_server::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_server::logging::ServerLogger;
use cubecl_server::runtime::Runtime;

/// The adapters whose runtime this process has started, each with its wgpu device and queue.
static STARTED: Mutex<Option<HashMap<DeviceId, Queue>>> = Mutex::new(None);

type Queue = (wgpu::Device, wgpu::Queue);

/// Starts the runtime of an adapter, unless it is running. `tasks` is the number of kernel launches per GPU submission;
/// only the first call for an adapter uses it.
///
/// # Errors
/// The adapter does not provide a device (the text then comes from wgpu), there is no software rasterizer any more, or CubeCL cannot
/// register its runtime.
pub(super) fn start(kind: &WgpuDeviceKind, tasks: usize) -> Result<(), String> {
    let device = WgpuDevice::new(kind.clone());
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let started = started.get_or_insert_default();
    if started.contains_key(&device.to_id()) {
        return Ok(());
    }
    let setup = match kind {
        WgpuDeviceKind::Cpu => {
            let setup = software_setup()?;
            register_wgsl(setup.clone(), tasks, device.to_id())?;
            setup
        }
        _ => try_init_setup::<AutoGraphicsApi>(&device, options(tasks)).map_err(|error| error.to_string())?,
    };
    started.insert(device.to_id(), (setup.device, setup.queue));
    Ok(())
}

/// The wgpu device and queue of an adapter's runtime, if it was started.
pub(super) fn queue(kind: &WgpuDeviceKind) -> Option<Queue> {
    let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    started.as_ref()?.get(&WgpuDevice::new(kind.clone()).to_id()).cloned()
}

/// Starts a runtime on a device that the caller has opened, for tests that limit or destroy the device.
///
/// # Errors
/// The device has no compute shaders or too few storage bindings, or the parts of `setup` do not belong together.
pub fn register(setup: WgpuSetup, tasks: usize) -> Result<WgpuDevice, String> {
    if setup.adapter.get_info().device_type != wgpu::DeviceType::Cpu {
        return try_init_device(setup, options(tasks)).map_err(|error| error.to_string());
    }
    // CubeCL counts the devices that it opens itself from 0.
    static NEXT: AtomicU32 = AtomicU32::new(1 << 15);
    let device = WgpuDevice::new(WgpuDeviceKind::Existing(NEXT.fetch_add(1, Ordering::Relaxed)));
    register_wgsl(setup, tasks, device.to_id())?;
    Ok(device)
}

fn options(tasks_max: usize) -> RuntimeOptions {
    RuntimeOptions { tasks_max, memory_config: MemoryConfiguration::default() }
}

/// A device on the first software rasterizer, with all of its features that are not experimental.
fn software_setup() -> Result<WgpuSetup, String> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN | wgpu::Backends::DX12));
    let software = adapters.into_iter().find(|adapter| adapter.get_info().device_type == wgpu::DeviceType::Cpu);
    let adapter = software.ok_or("the software rasterizer is no longer available")?;
    let request = wgpu::DeviceDescriptor {
        required_features: adapter.features() & !wgpu::Features::all_experimental_mask(),
        required_limits: adapter.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) =
        cubecl::future::block_on(adapter.request_device(&request)).map_err(|error| error.to_string())?;
    let backend = adapter.get_info().backend;
    Ok(WgpuSetup { instance, adapter, device, queue, backend })
}

/// Registers a runtime that compiles to WGSL, whatever features the adapter reports.
fn register_wgsl(setup: WgpuSetup, tasks: usize, id: DeviceId) -> Result<(), String> {
    let properties = wgsl_properties(&setup);
    let supports_u64 = properties.supports_type(ElemType::UInt(UIntKind::U64));
    let (memory, timing) = (properties.memory.clone(), properties.timing_method);
    let (utilities, captures) = ServerUtilities::init(
        ServiceId::of::<WgpuServer<AutoCompiler>>(id),
        "wgpu<wgsl>",
        properties,
        WgpuRuntime::<AutoCompiler>::target_properties(),
        Arc::new(ServerLogger::default()),
        ContiguousMemoryLayoutPolicy::new(memory.alignment as usize),
    );
    // `supports_vulkan_compiler` stays false, which makes `AutoCompiler` choose WGSL.
    let compilation = WgpuCompilationOptions { supports_u64, ..WgpuCompilationOptions::default() };
    let server = WgpuServer::<AutoCompiler>::new(
        memory,
        MemoryConfiguration::default(),
        compilation,
        setup.device,
        setup.queue,
        tasks,
        setup.backend,
        timing,
        utilities,
        captures,
    );
    Client::try_init(id, server).map(|_| ()).map_err(|error| format!("{error:?}"))
}

/// The same properties as CubeCL reports for an adapter when it compiles kernels to WGSL.
fn wgsl_properties(setup: &WgpuSetup) -> DeviceProperties {
    let (limits, info, features) = (setup.device.limits(), setup.adapter.get_info(), setup.adapter.features());
    let cubes = limits.max_compute_workgroups_per_dimension;
    let hardware = HardwareProperties {
        load_width: 128,
        vector_register_count: None,
        plane_size_min: info.subgroup_min_size,
        plane_size_max: info.subgroup_max_size,
        // wgpu binds one extra buffer with the lengths of the others.
        max_bindings: limits.max_storage_buffers_per_shader_stage.saturating_sub(1),
        max_shared_memory_size: limits.max_compute_workgroup_storage_size as usize,
        max_cube_count: (cubes, cubes, cubes),
        max_units_per_cube: limits.max_compute_invocations_per_workgroup,
        max_cube_dim: (
            limits.max_compute_workgroup_size_x,
            limits.max_compute_workgroup_size_y,
            limits.max_compute_workgroup_size_z,
        ),
        num_streaming_multiprocessors: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: None,
        num_cpu_cores: None,
        last_level_cache_size: None,
        max_vector_size: 4,
        cube_mma_reserved_shared_memory: 0,
    };
    let memory = MemoryDeviceProperties::new(
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
        u64::from(limits.min_uniform_buffer_offset_alignment.max(limits.min_storage_buffer_offset_alignment)),
    );
    let timing = match features.contains(wgpu::Features::TIMESTAMP_QUERY) {
        true => TimingMethod::Device,
        false => TimingMethod::System,
    };
    let fingerprint = format!("wgsl_{}_{}", info.vendor, info.device);
    let identity = DeviceIdentity { name: info.name, fingerprint, physical: None };
    let mut properties = DeviceProperties::new(Default::default(), memory, hardware, timing, identity);
    register_types(&mut properties, features);
    properties
}

/// Registers the types of WGSL, and the optional types that the adapter supports.
fn register_types(properties: &mut DeviceProperties, features: wgpu::Features) {
    properties.register_address_type(AddressType::U32);
    let types = [
        ElemType::Index,
        ElemType::UInt(UIntKind::U32),
        ElemType::Int(IntKind::I32),
        ElemType::Float(FloatKind::F32),
        ElemType::Float(FloatKind::Flex32),
        ElemType::Bool,
    ];
    let optional = [
        (wgpu::Features::SHADER_INT64, ElemType::Int(IntKind::I64)),
        (wgpu::Features::SHADER_INT64, ElemType::UInt(UIntKind::U64)),
        (wgpu::Features::SHADER_F64, ElemType::Float(FloatKind::F64)),
        (wgpu::Features::SHADER_F16, ElemType::Float(FloatKind::F16)),
    ];
    let reported = optional.into_iter().filter(|(feature, _)| features.contains(*feature)).map(|(_, of)| of);
    for of in types.into_iter().chain(reported) {
        properties.register_type_usage(of, TypeUsage::all());
    }
    for of in [ElemType::Int(IntKind::I32), ElemType::UInt(UIntKind::U32)] {
        let usage = AtomicUsage::LoadStore | AtomicUsage::Exchange | AtomicUsage::Add;
        properties.register_atomic_type_usage(Type::atomic(of), usage);
    }
}
