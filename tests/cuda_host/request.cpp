#include "request.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>

namespace {

struct Array {
  std::unique_ptr<char[]> memory;
  char* data;
  size_t bytes;
};

std::filesystem::path directory;
std::map<std::string, std::string> values;
std::map<std::string, Array> arrays;

}  // namespace

std::string Request::text(const std::string& name) const {
  const auto found = values.find(name);
  STD_TORCH_CHECK(found != values.end(), "no value for ", name);
  return found->second;
}

torchcalc::ScalarType Request::dtype() const {
  using torchcalc::ScalarType;
  const std::map<std::string, ScalarType> types{{"float32", ScalarType::Float},
                                                {"float64", ScalarType::Double},
                                                {"bfloat16", ScalarType::BFloat16},
                                                {"float16", ScalarType::Half}};
  return types.at(text("dtype"));
}

void* Request::allocate(const std::string& name, size_t bytes, size_t element) {
  const size_t skip = static_cast<size_t>(integer("offset")) * element;
  auto memory = std::make_unique_for_overwrite<char[]>(skip + bytes);
  char* data = memory.get() + skip;
  std::memset(data, 0xab, bytes);
  arrays[name] = {std::move(memory), data, bytes};
  return data;
}

void* Request::read(const std::string& name, size_t element) {
  std::ifstream file(directory / (name + ".in"), std::ios::binary);
  if (!file) return nullptr;
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  void* data = allocate(name, bytes.size(), element);
  std::memcpy(data, bytes.data(), bytes.size());
  return data;
}

// Answers the requests that come in, one a line, each with a line of its own.
int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    words >> directory;
    values.clear();
    arrays.clear();
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      values[word.substr(0, equals)] = word.substr(equals + 1);
    }
    try {
      Request request;
      answer(request);
    } catch (const std::exception& error) {
      std::cout << "error: " << error.what() << std::endl;
      continue;
    }
    for (const auto& [name, array] : arrays) {
      std::ofstream file(directory / (name + ".out"), std::ios::binary);
      file.write(array.data, static_cast<std::streamsize>(array.bytes));
    }
    std::cout << "done" << std::endl;
  }
}
