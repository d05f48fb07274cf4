// Runs a library that TVM compiled, on the processor that this program was compiled for.
//
//     tvm-runner model.tvm.so OUTPUT_PREFIX input.f32:1x3x32x32 ...
//
// Inputs and outputs are files of raw float32; the i-th output of the model is written to OUTPUT_PREFIX + i.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

struct Aligned {
  void AllocData(DLTensor* tensor) { tensor->data = std::aligned_alloc(64, (ffi::GetDataSize(*tensor) + 63) / 64 * 64); }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

static ffi::Tensor read(const std::string& argument) {
  const auto colon = argument.rfind(':');
  std::vector<int64_t> shape;
  std::stringstream sizes(argument.substr(colon + 1));
  for (std::string size; std::getline(sizes, size, 'x');) shape.push_back(std::stoll(size));
  ffi::Tensor value = ffi::Tensor::FromNDAlloc(Aligned(), ffi::Shape(shape), {kDLFloat, 32, 1}, {kDLCPU, 0});
  std::ifstream file(argument.substr(0, colon), std::ios::binary);
  file.read(static_cast<char*>(value.data_ptr()), ffi::GetDataSize(*value.GetDLTensorPtr()));
  return value;
}

static void write(const ffi::Tensor& value, const std::string& path) {
  const auto size = ffi::GetDataSize(*value.GetDLTensorPtr());
  std::ofstream(path, std::ios::binary).write(static_cast<const char*>(value.data_ptr()), size);
}

int main(int argc, char** argv) try {
  const int pooled_allocator = 2;
  ffi::Module library = ffi::Module::LoadFromFile(argv[1]);
  auto machine = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, pooled_allocator);
  std::vector<ffi::Any> inputs;
  for (int index = 3; index < argc; ++index) inputs.push_back(read(argv[index]));
  std::vector<ffi::AnyView> views(inputs.begin(), inputs.end());
  ffi::Any found;
  machine->GetFunction("main").value().CallPacked(views.data(), static_cast<int32_t>(views.size()), &found);
  std::vector<ffi::Tensor> outputs;
  if (auto several = found.try_cast<ffi::Array<ffi::Tensor>>()) {
    outputs.assign(several->begin(), several->end());
  } else {
    outputs.push_back(found.cast<ffi::Tensor>());
  }
  for (size_t index = 0; index < outputs.size(); ++index) write(outputs[index], argv[2] + std::to_string(index));
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
