// secateur-ncnn: runs networks of ncnn on the device that it was copied to, and says what it saw, line by line.
//
//     secateur-ncnn [--threads N] [--half] [--cores all|big|little] [--warmup MS] [--limit MS] [--least N] [--most N]
//                   [--seed N] MODEL=SHAPE[,SHAPE...] ...
//
// MODEL is a path without its ending: MODEL.param and MODEL.bin are the network, MODEL.in holds its inputs (float32,
// one after another, each of its SHAPE, such as 3x64x64), and MODEL.out receives its outputs in the same way. Networks
// that are named together take turns in random order, so that drift of the device touches all alike. Every line of
// standard output is a word and its values; the last one is `done` and the number of samples, so that a line that got
// lost on the way is noticed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cpu.h"
#include "net.h"
#include "platform.h"

namespace {

struct Settings {
    int threads = 1;
    bool half = false;
    int powersave = 0;  // of ncnn: 0 all cores, 1 little ones, 2 big ones
    double warmup_ms = 300;
    double limit_ms = 5000;
    int least = 10;
    int most = 100000;
    unsigned seed = 0;
};

struct Model {
    std::string path;
    std::vector<std::vector<int>> shapes;
    ncnn::Net net;
    std::vector<ncnn::Mat> inputs;
};

[[noreturn]] void fail(const std::string& why) {
    std::fprintf(stderr, "secateur-ncnn: %s\n", why.c_str());
    std::exit(2);
}

double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

std::vector<std::string> split(const std::string& text, char by) {
    std::vector<std::string> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, by);) parts.push_back(part);
    return parts;
}

int number(const std::string& text, int low) {
    char* end = nullptr;
    long value = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end || value < low || value > 1000000000) fail("not a number above " + std::to_string(low - 1) + ": " + text);
    return static_cast<int>(value);
}

ncnn::Mat empty(const std::vector<int>& shape) {
    switch (shape.size()) {
        case 1: return ncnn::Mat(shape[0]);
        case 2: return ncnn::Mat(shape[1], shape[0]);
        case 3: return ncnn::Mat(shape[2], shape[1], shape[0]);
        case 4: return ncnn::Mat(shape[3], shape[2], shape[1], shape[0]);
        default: fail("an input has one to four dimensions");
    }
}

// Calls `each(pointer, count)` for every stretch of floats that lies in one piece: channels are padded in memory.
template <typename Each>
void stretches(ncnn::Mat& mat, Each each) {
    const size_t plane = static_cast<size_t>(mat.w) * mat.h * mat.d;
    for (int c = 0; c < mat.c; ++c) each(static_cast<float*>(mat.data) + mat.cstep * c, plane);
}

void read_inputs(Model& model) {
    std::ifstream file(model.path + ".in", std::ios::binary);
    for (const auto& shape : model.shapes) {
        ncnn::Mat mat = empty(shape);
        if (mat.empty()) fail("no memory for an input of " + model.path);
        stretches(mat, [&](float* data, size_t count) { file.read(reinterpret_cast<char*>(data), count * sizeof(float)); });
        model.inputs.push_back(mat);
    }
    if (!file || file.peek() != std::ifstream::traits_type::eof()) fail(model.path + ".in does not hold inputs of these shapes");
}

void load(Model& model, const Settings& settings) {
    ncnn::Option& option = model.net.opt;
    option.num_threads = settings.threads;
    option.use_fp16_packed = option.use_fp16_storage = option.use_fp16_arithmetic = settings.half;
    option.use_bf16_storage = option.use_bf16_packed = false;
    option.use_vulkan_compute = false;
    if (model.net.load_param((model.path + ".param").c_str())) fail("cannot load " + model.path + ".param");
    if (model.net.load_model((model.path + ".bin").c_str())) fail("cannot load " + model.path + ".bin");
    if (model.net.input_names().size() != model.shapes.size()) {
        fail(model.path + " takes " + std::to_string(model.net.input_names().size()) + " inputs");
    }
    read_inputs(model);
}

std::vector<ncnn::Mat> infer(Model& model) {
    ncnn::Extractor extractor = model.net.create_extractor();
    const auto& inputs = model.net.input_names();
    for (size_t i = 0; i < inputs.size(); ++i) extractor.input(inputs[i], model.inputs[i]);
    std::vector<ncnn::Mat> outputs;
    for (const char* name : model.net.output_names()) {
        ncnn::Mat value;
        if (extractor.extract(name, value)) fail(model.path + " fails to compute " + name);
        outputs.push_back(value);
    }
    return outputs;
}

std::string shape_of(const ncnn::Mat& mat) {
    const int sizes[] = {mat.c, mat.d, mat.h, mat.w};
    const int first[] = {0, 3, 2, 0, 0};  // by number of dimensions
    std::string text;
    for (int axis = first[mat.dims]; axis < 4; ++axis) {
        if (axis == 1 && mat.dims != 4) continue;
        text += (text.empty() ? "" : "x") + std::to_string(sizes[axis]);
    }
    return text;
}

void write_outputs(Model& model) {
    std::ofstream file(model.path + ".out", std::ios::binary);
    auto outputs = infer(model);
    for (size_t i = 0; i < outputs.size(); ++i) {
        std::printf("output %s %s %s\n", model.path.c_str(), model.net.output_names()[i], shape_of(outputs[i]).c_str());
        stretches(outputs[i], [&](float* data, size_t count) { file.write(reinterpret_cast<char*>(data), count * sizeof(float)); });
    }
    file.close();
    if (!file) fail("cannot write " + model.path + ".out");
}

// The highest value among files whose path has a number in it, 0 when there is none that can be read.
long highest(const char* pattern) {
    long found = 0;
    for (int index = 0; index < 64; ++index) {
        char path[128];
        std::snprintf(path, sizeof path, pattern, index);
        std::ifstream file(path);
        long value = 0;
        if (file >> value) found = std::max(found, value);
    }
    return found;
}

void print_state(const char* when) {
    const long clock = highest("/sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq");  // kHz
    const long heat = highest("/sys/class/thermal/thermal_zone%d/temp");                   // m°C
    if (clock > 0) std::printf("clock_khz %s %ld\n", when, clock);
    if (heat > 0) std::printf("temperature_mc %s %ld\n", when, heat);
}

double timed(Model& model) {
    const double start = now_ms();
    infer(model);
    return now_ms() - start;
}

int measure(std::vector<Model>& models, const Settings& settings) {
    for (auto& model : models) {
        for (double start = now_ms(); now_ms() - start < settings.warmup_ms;) infer(model);
    }
    std::mt19937 random(settings.seed);
    std::vector<size_t> order(models.size());
    std::iota(order.begin(), order.end(), 0);
    const double start = now_ms();
    int rounds = 0;
    for (; rounds < settings.most && (rounds < settings.least || now_ms() - start < settings.limit_ms); ++rounds) {
        std::shuffle(order.begin(), order.end(), random);
        for (size_t i : order) std::printf("sample %s %.6f\n", models[i].path.c_str(), timed(models[i]));
    }
    return rounds * static_cast<int>(models.size());
}

std::vector<Model> parse(int argc, char** argv, Settings& settings) {
    std::vector<std::string> named;
    for (int i = 1; i < argc; ++i) {
        const std::string flag = argv[i];
        auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : (fail(flag + " needs a value"), ""); };
        if (flag == "--threads") settings.threads = number(value(), 1);
        else if (flag == "--half") settings.half = true;
        else if (flag == "--warmup") settings.warmup_ms = number(value(), 0);
        else if (flag == "--limit") settings.limit_ms = number(value(), 0);
        else if (flag == "--least") settings.least = number(value(), 0);
        else if (flag == "--most") settings.most = number(value(), 0);
        else if (flag == "--seed") settings.seed = static_cast<unsigned>(number(value(), 0));
        else if (flag == "--cores") {
            const std::string which = value();
            if (which != "all" && which != "little" && which != "big") fail("--cores is all, big or little");
            settings.powersave = which == "all" ? 0 : which == "little" ? 1 : 2;
        }
        else if (flag.rfind("--", 0) == 0) fail("unknown option " + flag);
        else named.push_back(flag);
    }
    if (named.empty()) fail("name a model: MODEL=3x64x64");
    std::vector<Model> models(named.size());
    for (size_t i = 0; i < named.size(); ++i) {
        const size_t at = named[i].rfind('=');
        if (at == std::string::npos) fail("write MODEL=SHAPE, not " + named[i]);
        models[i].path = named[i].substr(0, at);
        for (const auto& shape : split(named[i].substr(at + 1), ',')) {
            models[i].shapes.emplace_back();
            for (const auto& size : split(shape, 'x')) models[i].shapes.back().push_back(number(size, 1));
        }
    }
    return models;
}

}  // namespace

int main(int argc, char** argv) {
    Settings settings;
    auto models = parse(argc, argv, settings);
    ncnn::set_cpu_powersave(settings.powersave);
    std::printf("ncnn %s\n", NCNN_VERSION_STRING);
    std::printf("threads %d\n", settings.threads);
    for (auto& model : models) load(model, settings);
    for (auto& model : models) write_outputs(model);
    print_state("before");
    const int samples = measure(models, settings);
    print_state("after");
    std::printf("done %d\n", samples);
    return 0;
}
